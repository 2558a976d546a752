"""Tasks, one kind a file: what joins frontend, model, loss, decoder and served signatures."""
