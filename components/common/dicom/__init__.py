"""Bytes of a DICOM, PNG or JPEG file to a gray image (H, W), or the reason why not; `recipe` has the whole way."""
