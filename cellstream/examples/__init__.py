"""Programs that show the client at work: `python -m cellstream.examples.complete`."""
