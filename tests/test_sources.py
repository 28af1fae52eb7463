"""One data set as a folder, a CSV, a zip, a tar, a set of torchvision: the same pictures, labels, splits and results; and every fault."""

import csv
import io
import json
import os
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import linear_probe
import upsample
import zero_shot
from common import digest, load_data, natural, save_weights


def picture(path, colour=(200, 30, 30), size=(40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def png(colour=(9, 9, 9)):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(file, "PNG")
    return file.getvalue()


def files_below(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def pack(folder, file, wrapper=""):
    """A .zip, every other member deflated, or a .tar of what lies in a folder."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for i, name in enumerate(files_below(folder)):
                archive.write(folder / name, wrapper + name, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2])
    else:
        with tarfile.open(file, "w") as archive:
            archive.add(folder, wrapper or ".")
    return file


def write_csv(file, rows, delimiter=",", encoding="utf-8"):
    with open(file, "w", newline="", encoding=encoding) as out:
        csv.writer(out, delimiter=delimiter).writerows(rows)
    return file


def one_line(capsys, name, **more):
    """What load_data ends with."""
    with pytest.raises(SystemExit) as end:
        load_data(str(name), **more)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    return error


def same_data(a, b):
    """Classes, words, and in each split the same names of files in the same order, with the same labels and pixels."""
    assert (a.classes, a.words, sorted(a.splits)) == (b.classes, b.words, sorted(b.splits))
    for split in a.splits:
        assert len(a.splits[split]) == len(b.splits[split]) > 0
        for x, y in zip(a.splits[split], b.splits[split]):
            assert (Path(x[0]).name, x[1], x[3]) == (Path(y[0]).name, y[1], y[3])
            assert a.picture(x[0]).tobytes() == b.picture(y[0]).tobytes()


# ---- one data set, four ways ------------------------------------------------------------------------------------------


@pytest.fixture
def ways(world):
    """The tiny world as ./tiny.csv, ./tiny.zip and ./tiny.tar."""
    folder = world / "data/tiny"
    rows = [(f"data/tiny/{f}", f.split("/")[1], f.split("/")[0]) for f in files_below(folder) if f.endswith(".jpg")]
    np.random.default_rng(0).shuffle(rows)
    write_csv(world / "tiny.csv", [("path", "label", "split"), *rows])
    pack(folder, world / "tiny.zip", "pack/tiny/")
    pack(folder, world / "tiny.tar")
    return world


def test_scripts_find_the_same_in_each(ways, call):
    """All that is measured, and all that is kept of each picture, but for names of files, keys and times."""

    def result(script, name, *flags):
        code, _, err = call(script.main, "--data", name, "--type", "fruit", "--out", "r.json", *flags)
        assert code == 0, err
        record, arrays = json.loads(Path("r.json").read_text()), dict(np.load("r.npz"))
        names = [Path(path).name for path in arrays.pop("index")]
        return record["metrics"], record["data"]["counts"], record["data"]["classes"], names, {k: a.tolist() for k, a in arrays.items()}

    for script, flags in ((zero_shot, ["--model", "toy-ViT"]), (linear_probe, ["--model", "toy-RN"])):
        expected = result(script, "tiny", *flags)
        for name in ("./tiny.csv", "tiny.zip", "tiny.tar"):
            assert result(script, name, *flags) == expected


def test_splits_and_pixels_are_the_same(ways):
    folder = load_data("tiny")
    for name in ("tiny.csv", "tiny.zip", "tiny.tar"):
        data = load_data(name)
        assert data.name == "tiny"
        same_data(folder, data)
        for split, images in data.images(64).items():
            assert (images.pixels == folder.images(64)[split].pixels).all() and not images.skipped


@pytest.mark.parametrize("seed", [0, 3])
def test_without_a_test_split_the_same_files_are_held_out(tmp_path, seed, capsys):
    for c in "ab":
        for i in range(12):
            picture(tmp_path / "d" / c / f"{c}{i}.png", (i, 9, 9))
    names = files_below(tmp_path / "d")
    folder = load_data(str(tmp_path / "d"), seed=seed)
    write_csv(tmp_path / "d.csv", [("label", "path"), *((n[0], "d/" + n) for n in reversed(names))])
    for file in (tmp_path / "d.csv", pack(tmp_path / "d", tmp_path / "d.zip"), pack(tmp_path / "d", tmp_path / "d.tar")):
        same_data(folder, load_data(str(file), seed=seed))
    # groups by what is searched in the path, and by a column
    grouped = load_data(str(tmp_path / "d"), groups=r"\d")
    same_data(grouped, load_data(str(tmp_path / "d.zip"), groups=r"\d"))
    found = [(n[0], "d/" + n, Path(n).stem[1]) for n in names]
    write_csv(tmp_path / "g.csv", [("label", "path", "group"), *found])
    data = load_data(str(tmp_path / "g.csv"))
    same_data(grouped, data)
    assert data.groups == {path: group for _, path, group in found}
    assert "has a column group" in one_line(capsys, tmp_path / "g.csv", groups=r"\d")


def test_what_is_left_out_of_an_archive_is_said_as_of_a_folder(tmp_path, capsys):
    for name in (
        "train/a/1.png",
        "train/b/1.png",
        "test/a/1.png",
        "train/stray.png",
        "more/x.png",
        "train/.hidden/1.png",
        "__MACOSX/c/1.png",
    ):
        picture(tmp_path / "d" / name)
    (tmp_path / "d/train/a/notes.txt").write_text("x")
    (tmp_path / "d/classnames.json").write_text('{"a": "an ant"}', encoding="utf-8-sig")
    (tmp_path / "d/train/empty").mkdir()
    for file in (pack(tmp_path / "d", tmp_path / "d.zip"), pack(tmp_path / "d", tmp_path / "d.tar")):
        said = []
        for place in (tmp_path / "d", file):
            data = load_data(str(place))
            said.append(capsys.readouterr().out.replace(str(place), "PLACE"))
        assert "2 images in no class folder" in said[0] and "1 .txt" in said[0] and dict(zip(data.classes, data.words))["a"] == "an ant"
        if file.suffix == ".tar":  # a zip of files alone has no empty folders
            assert said[0] == said[1] and data.classes == ["a", "b", "empty"]


def test_names_of_a_zip_that_does_not_say_they_are_utf8(tmp_path, monkeypatch):
    """As the program zip writes them, which zipfile reads as those of DOS."""
    monkeypatch.setattr(zipfile.ZipInfo, "_encodeFilenameFlags", lambda info: (info.filename.encode(), 0))
    for c in ("pomme d'été", "苹果", "яблоко"):
        for split in ("train", "test"):
            picture(tmp_path / "d" / split / c / "1.png")
    same_data(load_data(str(tmp_path / "d")), load_data(str(pack(tmp_path / "d", tmp_path / "d.zip"))))
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        assert not any(name.isascii() or "été" in name for name in archive.namelist())  # else nothing is tested


def test_a_change_of_any_kind_is_another_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for c in "ab":
        for i in (1, 2):
            picture(tmp_path / "d/train" / c / f"{i}.bmp")
            picture(tmp_path / "d/test" / c / f"{i}.bmp")
    names = files_below(tmp_path / "d")

    def seen(name, when=1):
        os.utime(name, ns=(when, when))
        data = load_data(name)
        return data.images(64)["train"].key, data.fingerprint

    def rows(swap):
        return [("path", "label", "split"), *(("d/" + n, n.split("/")[1].translate(swap), n.split("/")[0]) for n in names)]

    for name, colour in (("d.zip", (1, 2, 3)), ("d.tar", (4, 5, 6))):
        pack(tmp_path / "d", Path(name))
        keys = [seen(name), seen(name, 2)]
        picture(tmp_path / "d/train/a/1.bmp", colour)  # of the same size
        pack(tmp_path / "d", Path(name))
        keys.append(seen(name))
        assert len({fingerprint for _, fingerprint in keys}) == 3 and seen(name) == keys[2]
        assert keys[0][0] == keys[1][0] != keys[2][0]  # of the first two the pixels are the same
    write_csv("d.csv", rows({}))
    first = seen("d.csv")
    write_csv("d.csv", rows({97: 98, 98: 97}))
    swapped = seen("d.csv")
    assert first[1] != swapped[1]
    os.utime("d/train/a/1.bmp", ns=(1, 1))
    assert seen("d.csv")[0] == swapped[0] and seen("d.csv")[1] != swapped[1]


# ---- CSV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_as_spreadsheets_write_it(delimiter, encoding, tmp_path, capsys):
    names = ["ä, b;\tc.png", "new\nline.png", '2"quotes".png', "10.png", "deep/9.png"]
    for name in names:
        picture(tmp_path / "set" / name)
    rows = [(name, "grüne, Äpfel", kind, "x") for name in names for kind in ("Training",)]
    rows += [(str(picture(tmp_path / "far.png")), "b", "train", "x"), ("../far2.png", "b", "TEST", "y")]
    picture(tmp_path / "far2.png")
    rows += [("deep/../10.png", "grüne, Äpfel", "train", "x"), ("", "", "", "")]
    file = write_csv(tmp_path / "set/l.csv", [(" Path", "label ", "split", "width"), *rows], delimiter, encoding)
    data = load_data(str(file))
    out = capsys.readouterr().out
    assert data.classes == ["b", "grüne, Äpfel"] and len(data.splits["train"]) == 6 and len(data.splits["test"]) == 1
    mine = [row[0] for row in data.splits["train"] if row[3] == 1]
    assert sorted(mine) == sorted(names) and mine == sorted(mine, key=natural)
    assert "columns that are not used: width" in out and "1 line repeats" in out
    assert data.picture("../far2.png").size == (40, 40)


HEAD = "path,label,split\n"


@pytest.mark.parametrize(
    "text, line, word",
    [
        (b"path,label\n1.png,caf\xe9\n", 2, "UTF-8"),
        ("path,label\n1.png,a\n".encode("utf-16"), 1, "UTF-8"),
        ("file,class\n1.png,a\n", 1, "path,label"),
        ("path,label,label\n1.png,a,b\n", 1, "path,label"),
        ("", 1, "path,label"),
        ("path,label\n", 1, "no row"),
        ("path,label\n1.png,a\n2.png,\n", 3, "label is empty"),
        (HEAD + "1.png,a,train\n2.png,b,\n", 3, "split is empty"),
        (HEAD + "1.png,a,train\n2.png,b,dev\n", 3, "split dev is none of train"),
        (HEAD + "1.png,a\n", 2, "2 columns"),
        (HEAD + '1.png,"a\n\nb",train\n2.png,b,train,x\n', 5, "4 columns"),
        (HEAD + '1.png,"a"b,train\n', 2, "cannot be read"),
        ('path,label\n1.png,a\n2.png,"b\n', 3, "cannot be read"),
        ("path,label\n1.png,a\nno.png,b\n\nnor.png,b\n", 3, "no.png; 2 files missing"),
        ("path,label\n1.png,a\n.,b\n", 3, "no file"),
        ("path,label\n1.png,a\n2.png,b\n./1.png,b\n", 4, "in line 2 a; each picture must have one label"),
        ("path,label\n1.png,a|b\n", 2, "several labels"),
        ("path;label\n1.png;'a\n2.png;a | b\n", 3, "several labels"),
        ('path,label\n1.png,a;\n2.png,"b;c"\n', 3, "several labels"),
        ('path,label\n1.png,a\n2.png,b\n3.png,"a, b"\n', 4, "several labels"),
        (HEAD + "1.png,a,train\n1.png,a,test\n", 3, "another split than in line 2"),
        ("path,label,group\n1.png,a,x\n1.png,a,y\n", 3, "another group than in line 2"),
    ],
)
def test_each_fault_of_a_csv_names_its_line(text, line, word, tmp_path, capsys):
    for i in (1, 2, 3):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "l.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    error = one_line(capsys, tmp_path / "l.csv")
    assert f"l.csv, line {line}: " in error and word in error


def test_csv_splits_are_judged_as_folders_are(tmp_path, capsys):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
    file = write_csv(
        tmp_path / "l.csv", [("path", "label", "split"), ("0.png", "a", "train"), ("1.png", "a", "test"), ("2.png", "b", "test")]
    )
    assert "lacks: b" in one_line(capsys, file)
    assert load_data(str(file), union=True).classes == ["a", "b"]
    file = write_csv(tmp_path / "l.csv", [("path", "label", "split"), ("0.png", "a", "valid")])
    assert "only a validation split" in one_line(capsys, file)
    file = write_csv(tmp_path / "l.csv", [("path", "label"), ("0.png", "a"), ("1.png", "a"), ("0.png", "a"), ("./1.png", "a")])
    assert sorted(map(len, load_data(str(file)).splits.values())) == [1, 1]
    assert "2 lines repeat one before, such as line 4" in capsys.readouterr().out
    assert "no such file or folder" in one_line(capsys, tmp_path / "none.csv")
    (tmp_path / "x.txt").write_text("")
    assert "neither a folder nor a .csv" in one_line(capsys, tmp_path / "x.txt")


# ---- archives ------------------------------------------------------------------------------------------------------------


def test_threads_read_an_archive_at_once(ways):
    """As each picture is read alone, whatever the others do."""
    for name in ("tiny.zip", "tiny.tar"):
        data = load_data(name)
        paths = [row[0] for rows in data.splits.values() for row in rows]
        alone = [data.picture(path).tobytes() for path in paths]
        with ThreadPoolExecutor(8) as pool:
            together = [image.tobytes() for image in pool.map(data.picture, paths * 5)]
        assert together == alone * 5 and len(set(alone)) > len(alone) // 2


def test_hostile_zip_members_are_left_out_aloud(tmp_path, capsys):
    zeros = bytes(17 << 20)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/a/1.png", "train/b/1.png", "./test//a/1.png", "../a/2.png", "train/a/../../2.png", "/a/2.png", "C:/a/2.png"):
            archive.writestr(name, png())
        link = zipfile.ZipInfo("train/a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("train/a/bomb.png", zeros)
        archive.writestr("train/a/lzma.png", png(), zipfile.ZIP_LZMA)
    data = load_data(str(tmp_path / "z.zip"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "z.zip: left out" in line]
    assert "4 members (name of a place outside)" in line and "1 member (link or device)" in line
    assert "1 member (grows more than 200 times)" in line and "1 member (not packed by deflate)" in line
    assert [row[0] for rows in data.splits.values() for row in rows] == ["test/a/1.png", "train/a/1.png", "train/b/1.png"]
    assert sorted(os.listdir(tmp_path)) == ["z.zip"]


def edited(file, name, **fields):
    """Change what the central directory of a zip says of a member: size, crc, flags."""
    data = bytearray(file.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    for field, value in fields.items():
        offset, form = {"flags": (8, "<H"), "crc": (16, "<I"), "size": (24, "<I")}[field]
        struct.pack_into(form, data, at + offset, value)
    file.write_bytes(data)


def test_members_that_lie_are_not_believed(tmp_path, monkeypatch, capsys):
    """A declared size is the most that is read; what is longer, shorter or damaged is skipped as a broken picture is."""
    monkeypatch.chdir(tmp_path)

    def make():
        with zipfile.ZipFile("z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("train/a/1.png", "train/a/2.png", "train/a/3.png", "test/a/1.png"):
                archive.writestr(name, png() if name != "train/a/2.png" else bytes(8 << 20))

    make()
    edited(Path("z.zip"), "train/a/2.png", size=100)  # of 8 MB
    edited(Path("z.zip"), "train/a/3.png", crc=1)
    data = load_data("z.zip")
    images = data.images(64)
    tracemalloc.start()
    with pytest.raises(ValueError, match="damaged"):
        data.picture("train/a/2.png")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert [path for path, _ in images["train"].skipped] == ["train/a/2.png", "train/a/3.png"] and len(images["train"]) == 1
    assert all("damaged" in reason for _, reason in images["train"].skipped)
    edited(Path("z.zip"), "train/a/2.png", size=(256 << 20) + 1)
    load_data("z.zip")
    assert "1 member (more than 256 MB)" in capsys.readouterr().out
    edited(Path("z.zip"), "test/a/1.png", flags=1)
    assert "has a password (test/a/1.png)" in one_line(capsys, "z.zip")
    make()
    Path("z.zip").write_bytes(Path("z.zip").read_bytes()[:-200])
    assert "cut off" in one_line(capsys, "z.zip")
    Path("z.zip").write_text("no zip")
    assert "cannot be read" in one_line(capsys, "z.zip")


def test_hostile_tar_members_are_left_out_aloud(tmp_path, capsys):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, kind in (
            ("train/a/1.png", tarfile.REGTYPE),
            ("train/b/1.png", tarfile.REGTYPE),
            ("test/a/1.png", tarfile.REGTYPE),
            ("../2.png", tarfile.REGTYPE),
            ("/a/2.png", tarfile.REGTYPE),
            ("train/a/sym.png", tarfile.SYMTYPE),
            ("train/a/hard.png", tarfile.LNKTYPE),
            ("train/a/dev.png", tarfile.CHRTYPE),
            ("train/a/fifo.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "train/a/1.png", len(png()) * (kind == tarfile.REGTYPE)
            archive.addfile(info, io.BytesIO(png()))
    data = load_data(str(tmp_path / "t.tar"))
    assert "left out: 2 members (name of a place outside), 4 members (link or device)" in capsys.readouterr().out
    assert len(data.splits["train"]) == 2 and len(data.splits["test"]) == 1
    whole = (tmp_path / "t.tar").read_bytes()
    for size in (300, 700, 512 * 9 + 100, 2048):  # in a head, in a picture, in a later head, between two
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        assert "cut off" in one_line(capsys, tmp_path / "cut.tar")
    for name, mode in (("t.tar.gz", "w:gz"), ("zipped.tar", "w:gz"), ("t.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(tmp_path / "t.tar", "t")
        assert "unpack it" in one_line(capsys, tmp_path / name)


def test_a_picture_that_is_a_bomb_is_an_error_for_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("train/a/1.png", "test/a/1.png", "test/a/2.png"):
        picture(tmp_path / "d" / name, size=(20, 20))
    picture(tmp_path / "d/test/a/2.png", size=(60, 60))
    pack(tmp_path / "d", tmp_path / "d.zip")
    assert ["bomb" in reason for _, reason in load_data("d.zip").images(16)["test"].skipped] == [True]


# ---- torchvision ----------------------------------------------------------------------------------------------------------


def test_torchvision_sets_with_and_without_splits(tmp_path, monkeypatch, capsys):
    """The sets' own readers are the reference: of DTD with three splits, of EuroSAT with none, of GTSRB without names."""
    monkeypatch.chdir(tmp_path)
    root = Path("data/torchvision")
    (root / "DTD/dtd/dtd/labels").mkdir(parents=True)
    for k, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{i:02}.jpg" for i in range(3) for c in ("knitted", "lace_like")]
        for i, name in enumerate(names):
            picture(root / "DTD/dtd/dtd/images" / name.replace("_0", f"_{k}"), (40 * i, 50 * k, 0))
        (root / f"DTD/dtd/dtd/labels/{split}1.txt").write_text("\n".join(n.replace("_0", f"_{k}") for n in names))
    data = load_data("torchvision:DTD")
    assert data.name == "DTD" and data.classes == ["knitted", "lace_like"] and data.words == ["knitted", "lace like"]
    for split, rows in data.splits.items():
        theirs = torchvision.datasets.DTD(root / "DTD", split)
        assert sorted(int(path.rpartition("/")[2]) for path, *_ in rows) == list(range(6))
        for path, _, _, label in rows:
            image, y = theirs[int(path.rpartition("/")[2])]
            assert label == y and data.picture(path).tobytes() == image.tobytes()
    images = data.images(64)
    assert [*images] == ["train", "val", "test"]
    picture(root / "DTD/dtd/dtd/images/lace_like/lace_like_10.jpg")
    assert load_data("torchvision:DTD").fingerprint != data.fingerprint

    for i in range(10):
        for c in ("Forest", "River"):
            picture(root / "EuroSAT/eurosat/2750" / c / f"{c}_{i}.jpg", (i, 9, 200))
    data = load_data("torchvision:EuroSAT")
    assert "no test split: a run of neighbouring files" in capsys.readouterr().out
    assert data.classes == ["Forest", "River"] and [len(data.splits[s]) for s in ("train", "test")] == [16, 4]

    for c in range(11):
        picture(root / f"GTSRB/gtsrb/GTSRB/Training/{c:05}/{len(list(root.rglob('*.ppm')))}.ppm")
    picture(root / "GTSRB/gtsrb/GTSRB/Final_Test/Images/0.ppm")
    (root / "GTSRB/gtsrb/GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;10\n")
    data = load_data("torchvision:GTSRB", union=True)
    assert data.classes == [str(i) for i in range(11)] and [row[3] for row in data.splits["train"]] == [*range(11)]
    assert [row[3] for row in data.splits["test"]] == [10]
    assert "they are numbers, and captions need words: --classnames" in capsys.readouterr().out


def test_fake_data_is_the_same_from_any_thread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    data = load_data("torchvision:FakeData")
    assert torch.equal(torch.get_rng_state(), state) and data.classes == [str(i) for i in range(10)]
    theirs = torchvision.datasets.FakeData()
    rows = data.splits["train"][:60]
    with ThreadPoolExecutor(8) as pool:
        ours = list(pool.map(lambda row: data.picture(row[0]).tobytes(), rows))
    numbers = [int(row[0].rpartition("/")[2]) for row in rows]
    assert ours == [theirs[i][0].tobytes() for i in numbers] and [row[3] for row in rows] == [theirs[i][1] for i in numbers]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "name, word",
    [
        ("CIFAR", "nearest: CIFAR10"),
        ("StanfordCars", "torchvision.datasets.StanfordCars('data/torchvision/StanfordCars', download=True) makes it"),
        ("CocoDetection", "takes more than a name: annFile"),
        ("ImageFolder", "takes more than a name"),
        ("ImageNet", "is not present in the root directory"),
        ("EMNIST", "no splits called train or test"),
        ("Kinetics", "takes more than a name"),
    ],
)
def test_sets_that_cannot_be_had_are_one_line(name, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert word in one_line(capsys, f"torchvision:{name}")


# ---- classes from names of files ------------------------------------------------------------------------------------------


def test_label_from_names_of_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for c, n in (("homer_simpson", 4), ("bart_simpson", 5)):
        for i in range(n):
            picture(tmp_path / "flat" / f"{c}_{i}.png", (i, 0, 0))
            picture(tmp_path / "folders" / c / f"{c}_{i}.png", (i, 0, 0))
            picture(tmp_path / "both/train" / c / f"{i}.png", (i, 0, 0))
        picture(tmp_path / "both/test" / f"{c}_9.png")
        picture(tmp_path / "folders2/train" / c / "0.png")
        picture(tmp_path / "folders2/test" / c / f"{c}_9.png")
    regex = r"(.+)_\d+"
    same_data(load_data("folders"), load_data("flat", label_from=regex))
    for name in ("flat", "both"):
        for file in (pack(tmp_path / name, tmp_path / f"{name}.zip"), pack(tmp_path / name, tmp_path / f"{name}.tar", "wrapper/")):
            same_data(load_data(name, label_from=regex), load_data(str(file), label_from=regex))
    data = load_data("both", label_from=regex)
    assert [(row[0], data.classes[row[3]]) for row in data.splits["test"]] == [
        ("test/bart_simpson_9.png", "bart_simpson"),
        ("test/homer_simpson_9.png", "homer_simpson"),
    ]
    assert len(data.splits["train"]) == 9 and "left out" not in capsys.readouterr().out
    # two captures, the whole match; another pattern is another fingerprint where labels differ
    assert load_data("flat", label_from="^([a-z])[a-z]*_(s)").classes == ["b_s", "h_s"]
    assert load_data("flat", label_from="^[a-z]+").classes == ["bart", "homer"]
    assert load_data("flat", label_from="^[a-z]+").fingerprint != load_data("flat", label_from=regex).fingerprint
    # a picture beside the class folder of its name joins it
    picture(tmp_path / "both/train/homer_simpson_77.png")
    rows = load_data("both", label_from=regex).splits["train"]
    assert len(rows) == 10 and ("train/homer_simpson_77.png", 1) in [(row[0], row[3]) for row in rows]
    # faults
    capsys.readouterr()
    assert "finds no class in the names of 4 pictures, such as flat/homer" in one_line(capsys, "flat", label_from="(bart)")
    assert "not a regular expression" in one_line(capsys, "flat", label_from="(")
    assert "no picture lies beside class folders" in one_line(capsys, "folders", label_from=regex)
    write_csv(tmp_path / "l.csv", [("path", "label")])
    for name in ("l.csv", "torchvision:CIFAR10"):
        assert "says itself what each picture is" in one_line(capsys, name, label_from=regex)


def test_the_simpsons_of_kaggle_lie_flat(real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = load_data(str(real / "simpsons"))
    (tmp_path / "s/kaggle/Test").mkdir(parents=True)
    (tmp_path / "s/kaggle/Training").symlink_to(real / "simpsons/Training")
    for path, _, _, label in plain.splits["test"]:
        name = f"{plain.classes[label]}_{Path(path).name}"
        shutil.copy2(real / "simpsons" / path, tmp_path / "s/kaggle/Test" / name)
    data = load_data("s", label_from="^(" + "|".join(plain.classes) + ")_")
    assert data.classes == plain.classes and len(data.splits["test"]) == 100
    for ours, theirs in zip(data.splits["test"], plain.splits["test"]):
        assert ours[3] == theirs[3] and data.picture(ours[0]).tobytes() == plain.picture(theirs[0]).tobytes()
    assert data.splits["train"] == [(f"kaggle/{path}", *rest) for path, *rest in plain.splits["train"]]


# ---- enlarged copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny.zip", "tiny.tar", "tiny.csv", "held.csv"])
def test_an_enlarged_copy_has_the_same_classes_and_splits(name, ways, call):
    generator = upsample.Generator(1, 4)
    save_weights("g.safetensors", {f"srgan.{key}": tensor for key, tensor in generator.state_dict().items()}, {"steps": {"srgan": 1}})
    if name == "held.csv":  # no split column, and paths outside
        lines = [row[:2] for row in csv.reader(Path("tiny.csv").read_text(encoding="utf-8").splitlines())]
        Path("deep").mkdir()
        write_csv(ways / "deep/held.csv", [lines[0], *((f"../{path}", label) for path, label in lines[1:])])
        name = "deep/held.csv"
    code, _, err = call(upsample.main, "apply", "--data", name, "--weights", "g.safetensors", "--size", "64", "--to", "made")
    assert code == 0, err
    source, made = load_data(name), load_data("./made")
    assert (made.classes, made.words, sorted(made.splits)) == (source.classes, source.words, sorted(source.splits))
    for split, rows in source.splits.items():
        assert [(Path(p).stem, y) for p, *_, y in rows] == [
            (Path(p).stem.partition("-")[2] if "csv" in name else Path(p).stem, y) for p, *_, y in made.splits[split]
        ]
        before, after = (np.asarray(d.picture(d.splits[split][0][0])).mean() for d in (source, made))
        assert abs(before - after) < 3
    assert digest(source.splits) != digest(made.splits)


def test_an_enlarged_copy_holds_pictures_of_folders_in_classes(world, call):
    for name in ("train/a/day 1/1.png", "train/b/2.png", "test/a/day 2/cam/1.png", "test/b/1.png"):
        picture(world / "deep" / name)
    generator = upsample.Generator(1, 4)
    save_weights("g.safetensors", {f"srgan.{key}": tensor for key, tensor in generator.state_dict().items()}, {"steps": {"srgan": 1}})
    for name in ("./deep", pack(world / "deep", world / "deep.zip").name):
        code, _, err = call(
            upsample.main, "apply", "--data", name, "--weights", "g.safetensors", "--size", "48", "--to", f"made of {name[2:]}"
        )
        assert code == 0, err
        same = [[row[0] for row in load_data(place).splits["test"]] for place in (name, f"./made of {name[2:]}")]
        assert same[0] == same[1] == ["test/a/day 2/cam/1.png", "test/b/1.png"]
