"""Data sets in COCO's layout: located, checked, loaded."""
