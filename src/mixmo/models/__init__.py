"""The paper's backbones, registered with timm, and what any backbone may need: copies, cuts, convolutions to sum."""
