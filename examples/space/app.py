"""The app as a Space on the Hugging Face Hub: this folder is its repository."""

from upernet_zoo.web.app_server import serve

serve("upernet_r50_512x512_160k_ade20k", host="0.0.0.0", port=7860)
