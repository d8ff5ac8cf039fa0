"""File formats: readers that turn files into data sources. ``detect.py`` recognises the format of a file."""
