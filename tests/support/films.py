"""Small videos, whole and damaged; needs the package av."""

import av
import numpy as np


def write_video(path, count=8, size=(96, 128), rate=10):
    """A video of colored tiles that move."""
    tiles = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.codec_context.gop_size = 4  # so that a damaged frame costs few others
        for number in range(count):
            pixels = np.roll(tiles.repeat(size[0] // 6, 0).repeat(size[1] // 8, 1), 5 * number, 1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def spoil(path, number):
    """Overwrite a packet, but for its header."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    start, size = packets[number]
    content = bytearray(path.read_bytes())
    content[start + 8 : start + size] = b"\xff" * (size - 8)
    path.write_bytes(content)


def decoded(path):
    """What PyAV alone gives."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
