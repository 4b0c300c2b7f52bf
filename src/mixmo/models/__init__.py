"""The paper's backbones, registered with timm, and what is done to any backbone: copied, cut in two, its convolutions scaled."""
