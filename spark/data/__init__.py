"""Images from anywhere: found, decoded, cropped, put in order."""
