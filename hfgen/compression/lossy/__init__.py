"""Images with a codec, which loses details: content of kind `IMAGES`.

image_files.py goes from images to a file and back, over image_codec.py (what the file holds).
"""
