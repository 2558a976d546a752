"""Raw records to features: the same code in tf.data and in the served graph."""
