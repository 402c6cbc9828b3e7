import socket

import pytest
from data_files import write_image
from recordings import write_dataset


@pytest.fixture
def folder(tmp_path):
    """train/ with 10 cats and 20 dogs, test/ with 4 and 6: PNG and WebP of 32×32."""
    root = tmp_path / "images"
    seed = 0
    for part, counts in {"train": (10, 20), "test": (4, 6)}.items():
        for name, count in zip(("cat", "dog"), counts, strict=True):
            for index in range(count):
                suffix = "webp" if index % 2 else "png"
                write_image(root / part / name / f"{index:02d}.{suffix}", seed)
                seed += 1
    return root


@pytest.fixture
def no_network(monkeypatch):
    """What fails on a closed network could be taken for another error: no one may even try."""
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda *address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: tried.append(address))
    yield
    assert not tried


@pytest.fixture(scope="package")
def written(tmp_path_factory):
    """By the name of an event dataset: its recordings and the folder that holds them."""
    made = {}

    def get(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            made[name] = write_dataset(name, root), root
        return made[name]

    return get
