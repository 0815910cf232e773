"""The HTTP service: a picture and words in, labelled segments out."""
