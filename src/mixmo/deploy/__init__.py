"""Networks for use elsewhere: predictions, exported files, the Hub; and the authors' checkpoints from there."""
