"""A segmentation that steers diffusers: the image that a ControlNet for segmentations takes.

    pip install git+https://github.com/upernet-zoo/upernet_zoo
    python controlnet.py MODEL room.jpg control.png

The published ControlNets for segmentations (such as lllyasviel/control_v11p_sd15_seg) were trained with ADE20K's 150 colors, which a model
for ADE20K has here: `upernet-zoo list --dataset ade20k`. Another model's colors mean other things to them.
"""

import sys

from PIL import Image

import upernet_zoo as uz

model, picture, out = sys.argv[1:]
segmentation = uz.Segmenter(model)(picture)
control = Image.fromarray(segmentation.colors())  # RGB, in the picture's own size
control.save(out)

# and on from here, with diffusers and a GPU (not run by the tests):
#   from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
#   controlnet = ControlNetModel.from_pretrained("lllyasviel/control_v11p_sd15_seg")
#   pipeline = StableDiffusionControlNetPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", controlnet=controlnet)
#   pipeline("a cozy room in the evening", image=control).images[0]
