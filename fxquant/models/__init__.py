"""Where models, example inputs and images come from; timm, torchvision and pillow are optional."""
