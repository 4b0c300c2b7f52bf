"""The paper's backbones, registered with timm, and cutting a backbone in two."""
