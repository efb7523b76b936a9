"""The colour that stands for a page's own: figures draw in it, and the report puts the page's in its place.

It is apart from the figures so that the report need not import matplotlib.
"""

INK = "#010203"
