"""An index of a few images in files, as the tests of the service and of its page search it."""

from typing import NamedTuple

import numpy as np
from encoders import noise, random_encoder

from jax_brcd.search import open_store
from jax_brcd.search.service.app import create_app
from jax_brcd.search.service.engine import Engine
from jax_brcd.search.service.limits import Limits

SIDE = 40


class Served(NamedTuple):
    """An index of images, image number 7 being called `ids[7]`."""

    store: object
    engine: Engine
    encoder: object
    images: np.ndarray
    paths: list
    ids: list

    def app(self, **settings):
        """A service of the index; each has counts and limits of its own."""
        return create_app(self.engine, **settings)


def picture_bytes(image, form="PNG", **settings):
    """An image as a file's bytes."""
    import io

    from PIL import Image

    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, form, **settings)
    return file.getvalue()


def serve_images(folder, count=24, *, encoder=None, second=None):
    """Writes images into a folder, and an index of them; a `second` encoder is offered for asymmetric search."""
    encoder = encoder or random_encoder(shrink=0.05)
    images = np.kron(noise(count, 2, 2, seed=5), np.ones((1, SIDE // 2, SIDE // 2, 1), np.uint8))  # of four colours each
    paths, ids, attributes = [], [], []
    for number, image in enumerate(images):
        path = folder / f"photo {number}.png"
        path.write_bytes(picture_bytes(image))
        paths.append(path)
        ids.append(f"id/{number:03}?")  # with characters that an address must not hold as they are
        about = path.stat()
        attributes.append({"path": str(path), "size": about.st_size, "mtime": about.st_mtime, "missing": False})
    store = open_store("memory:", create_for=encoder)
    thumbnails = [picture_bytes(image, "JPEG") if number % 2 else None for number, image in enumerate(images)]
    store.add(ids, encoder.encode(images), attributes, thumbnails)
    encoders = {"asymmetric": second, "symmetric": encoder} if second else {"symmetric": encoder}
    return Served(store, Engine(store, encoders), encoder, images, paths, ids)


SMALL = Limits(max_mib=1, max_megapixels=0.05, max_hits=20)
