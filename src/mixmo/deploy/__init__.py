"""Networks for use elsewhere, and from elsewhere: the authors' checkpoints."""
