import pytest
from data_files import write_image


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
