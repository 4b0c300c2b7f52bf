"""Networks for use elsewhere: fused into the plain backbone; read from the authors' checkpoints."""
