"""Millions of pictures through Ray Data: files or Parquet in, Parquet out, on one machine or a cluster.

    pip install "ray[data]"
    python examples/ray_data.py demo pictures/ labels/ --workers 2
    python examples/ray_data.py upernet_swin_tiny_... s3://bucket/pictures.parquet s3://bucket/labels --column jpeg --name id --gpus 1

Each worker is an actor that loads the model once. A row of the result is a picture: `path`; `error`, null where there was none; `height`
and `width`; `labels`, the PNG that `Segmentation.save` would write; and the area of each class, 0 to 1, in a column of its own. What
cannot be segmented is a row too, with its error and nulls, so as many rows come out as went in.
"""

from __future__ import annotations

import argparse
import io

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import ray
from PIL import UnidentifiedImageError

import upernet_zoo as uz
from upernet_zoo.images import reading
from upernet_zoo.images.save import labels_png

# of a CPU, by which Ray plans: readers, writers and the listing of files, which takes a whole one, have to fit beside the workers
_WORKER, _FILES = 0.4, 0.1


class SegmentBatch:
    """An actor: a batch of encoded pictures in, a batch of results out."""

    def __init__(self, model: str, name: str, column: str) -> None:
        self.segmenter = uz.Segmenter(model)
        self.name, self.column = name, column
        classes = self.segmenter.model.label_set.classes
        fixed = {"path": pa.string(), "error": pa.string(), "height": pa.int32(), "width": pa.int32(), "labels": pa.binary()}
        self.schema = pa.schema(fixed | {f"area_{name.strip()}": pa.float32() for name in classes})

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row for each picture of the batch."""
        pictures = zip(batch[self.name].to_pylist(), batch[self.column].to_pylist())
        rows = [self._row(str(path), content) for path, content in pictures]
        return pa.Table.from_pylist(rows, schema=self.schema)

    def _row(self, path: str, content: bytes | None) -> dict[str, object]:
        file = io.BytesIO(content or b"")
        try:
            segmentation = self.segmenter(reading.read(file))
        except UnidentifiedImageError:
            return {"path": path, "error": reading.why_unread(file)}
        except Exception as error:  # Pillow has many for damaged files; one picture must not end a run over millions
            return {"path": path, "error": str(error) or type(error).__name__}
        height, width = segmentation.labels.shape
        png = labels_png(segmentation.labels, segmentation.palette, segmentation.classes)
        areas = dict.fromkeys(self.schema.names[5:], 0.0) | {f"area_{name.strip()}": area for name, area in segmentation.areas().items()}
        return {"path": path, "error": None, "height": height, "width": width, "labels": png} | areas


def segment(model: str, source: str, *, column: str | None, name: str, workers: int, gpus: float, batch_size: int) -> ray.data.Dataset:
    """The results, not yet computed: with `.write_parquet(out)` or `.iter_rows()` they are, a block at a time.

    Args:
        model: what `Segmenter` takes; each machine finds or downloads its weights once, in its own cache.
        source: a folder of pictures, or, with `column`, Parquet files; on a disk or a store that Ray reads.
        column: the Parquet column that has the encoded pictures.
        name: the Parquet column that names them.
        workers: how many actors hold a model.
        gpus: of each actor; 0 for the CPU.
        batch_size: pictures in one call of an actor.
    """
    if column is None:
        column, name = "bytes", "path"
        endings = [suffix.removeprefix(".") for suffix in reading.SUFFIXES]
        pictures = ray.data.read_binary_files(source, include_paths=True, file_extensions=endings, num_cpus=_FILES)
    else:
        pictures = ray.data.read_parquet(source, columns=[name, column], num_cpus=_FILES)
    return pictures.map_batches(
        SegmentBatch,
        fn_constructor_args=(model, name, column),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus,
        num_cpus=_WORKER,
    )


def main() -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what Segmenter takes: a name of the index, demo, a file, a folder")
    parser.add_argument("source", help="a folder of pictures, or Parquet files with --column")
    parser.add_argument("out", help="a folder for the Parquet files of the result")
    parser.add_argument("--column", help="the Parquet column that has the encoded pictures")
    parser.add_argument("--name", default="path", help="the Parquet column that names them (default: path)")
    parser.add_argument("--workers", type=int, default=2, help="how many actors hold a model (default: 2)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker (default: 0)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures in one call of an actor (default: 8)")
    args = parser.parse_args()
    where = pyarrow.fs.FileSystem.from_uri(args.out) if "://" in args.out else (pyarrow.fs.LocalFileSystem(), args.out)
    if where[0].get_file_info(pyarrow.fs.FileSelector(where[1], allow_not_found=True)):
        parser.error(f"{args.out} is not empty, and its files would count as results of this run. Give another folder.")
    uz.create_model(args.model)  # a wrong name or a digest that does not match is said here, not by every worker
    options = {name: getattr(args, name) for name in ("column", "name", "workers", "gpus", "batch_size")}
    segment(args.model, args.source, **options).write_parquet(args.out, ray_remote_args={"num_cpus": _FILES})
    done = pyarrow.dataset.dataset(args.out)
    failed = done.to_table(columns=["path", "error"], filter=pyarrow.dataset.field("error").is_valid()).to_pylist()
    print(f"{done.count_rows() - len(failed)} of {done.count_rows()} pictures segmented into {args.out}")
    for row in failed:
        print(f"  {row['path']}: {row['error']}")


if __name__ == "__main__":
    main()
