"""An exported model in TensorRT, through ONNX Runtime's provider. NOT RUN: written without a GPU at hand; its syntax alone is checked.

    upernet-zoo export MODEL --form direct --out model.onnx
    pip install --no-deps git+https://github.com/upernet-zoo/upernet_zoo
    pip install numpy pillow onnxruntime-gpu tensorrt
    python tensorrt_runtime.py model.onnx street.jpg labels.png

Operators that TensorRT does not take fall to CUDA, and what that does not take to the CPU. The engine is built at the first run and kept in
`trt_cache`.
"""

import sys

import onnxruntime

from upernet_zoo.runtime import OnnxSegmenter

model, picture, out = sys.argv[1:]
options = {"trt_fp16_enable": True, "trt_engine_cache_enable": True, "trt_engine_cache_path": "trt_cache"}
providers = [("TensorrtExecutionProvider", options), "CUDAExecutionProvider", "CPUExecutionProvider"]
session = onnxruntime.InferenceSession(model, providers=providers)
print("runs on", session.get_providers())
OnnxSegmenter(session)(picture).save(out)
