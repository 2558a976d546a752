"""`python -m serving.model_server`."""

import sys

from serving.model_server import main

sys.exit(main())
