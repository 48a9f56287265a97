"""From the bytes of a DICOM, PNG or JPEG file to a grey image, or the reason why there is none."""
