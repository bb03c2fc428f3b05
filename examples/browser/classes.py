"""Write classes.json beside an exported model: names and colors of its classes, out of its metadata.

python classes.py model.onnx
"""

import json
import sys
from pathlib import Path

import onnxruntime

model = Path(sys.argv[1])
metadata = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
content = {key: json.loads(metadata[key]) for key in ("classes", "palette")}
model.with_name("classes.json").write_text(json.dumps(content), encoding="utf-8")
