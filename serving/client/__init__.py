"""A client of model servers that speak TF Serving's gRPC protocol; needs no TensorFlow.

```python
with Client("localhost:8500") as client:
    outputs = client.predict("half_plus_two", [1.0, 2.0, 5.0])  # {"y": array([2.5, 3.0, 4.5])}
```
"""

from serving.client.client import Client
from serving.client.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    ServerUnavailable,
    ServingError,
    SignatureNotFound,
)
from serving.client.streaming import Streamed

__all__ = [
    "Client",
    "DeadlineExceeded",
    "InvalidInput",
    "ModelNotFound",
    "ServerUnavailable",
    "ServingError",
    "SignatureNotFound",
    "Streamed",
]
