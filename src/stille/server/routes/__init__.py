"""The endpoints, one file per family. A new protocol adds a file here and a line in `app.py`."""
