"""The request, the pass, and the streaming of rows into files. It knows no format."""
