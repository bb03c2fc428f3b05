"""An example of each command, for its --help."""

__all__ = ["EXAMPLES"]

EXAMPLES = {
    "list": "upernet-zoo list '*r101*' --dataset ade20k --sort mIoU",
    "info": "upernet-zoo info upernet_r50_512x512_160k_ade20k",
    "page": "upernet-zoo page zoo.html --weights published_check/weights.json",
    "download": "upernet-zoo download --dataset cityscapes",
    "where": "upernet-zoo where upernet_r50_512x512_160k_ade20k",
    "verify": "upernet-zoo verify --deep",
    "cache": "upernet-zoo cache --prune upernet_r50_512x512_160k_ade20k",
    "mirror": "upernet-zoo mirror /srv/upernet --all",
    "push": "upernet-zoo push my_upernet.pth my-organization/my-upernet --private",
    "predict": "upernet-zoo predict upernet_r50_512x512_160k_ade20k street.jpg pictures/ --out predictions",
    "demo": "upernet-zoo demo --out scene.png --seed 7",
    "app": "upernet-zoo app upernet_r50_512x512_160k_ade20k --port 7861",
    "evaluate": "upernet-zoo evaluate upernet_r50_512x512_160k_ade20k ade20k data/ADEChallengeData2016 --ms-flip",
    "train": "upernet-zoo train folder my_data --model upernet_r50_512x512_160k_ade20k --out my_upernet",
    "convert": "upernet-zoo convert work_dir/iter_80000.pth --out my_upernet",
    "export": "upernet-zoo export local-dir:my_upernet --out my_upernet.onnx --labels",
    "benchmark": "upernet-zoo benchmark upernet_r50_512x512_160k_ade20k --size 512x1024",
}
