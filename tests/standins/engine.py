"""Stand-in for ``docker run``: the program of this machine, with mounted paths put back.

``engine.py run [OPTIONS] [--entrypoint NAME] [-v HOST:CONTAINER[:ro] ...] IMAGE [ARGUMENTS]``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Options of ``run`` that the smoke test uses without a value.
FLAGS = {"--rm", "--read-only"}


def main() -> None:
    given = iter(sys.argv[2:])
    program, mounts = "bids_harmony", dict[str, str]()
    for word in given:
        if not word.startswith("-"):
            break  # the image
        # The image keeps odd variables from the program; here there is no image.
        if word in FLAGS or word.startswith("--env="):
            continue
        value = next(given)
        if word == "--entrypoint":
            program = value
        elif word == "-v":
            host, inside, *_ = value.split(":")
            mounts[inside] = host
    # The image has a work folder of its own in each container.
    os.environ["IS_DOCKER_8395080871"] = "1"
    os.chdir(os.environ["STANDIN_FOLDER"])
    arguments = []
    for word in given:
        root = "/" + word.removeprefix("/").split("/")[0]
        host = mounts.get(root) if word.startswith("/") else None
        arguments.append(word if host is None else host + word.removeprefix(root))
    command = Path(sys.executable).with_name(program)
    os.execv(command, [str(command), *arguments])


main()
