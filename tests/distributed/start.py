"""One rank under ``torchrun``: run the checks that the command line names, as module:function."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

import torch
import torch.distributed as dist


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        module, check = argument.split(":")
        try:
            getattr(importlib.import_module(module), check)(dist.get_rank())
        except BaseException:
            traceback.print_exc()
            leave(1)  # at once: the others wait for this rank
        if dist.get_rank() == 0:
            print(f"{argument} ok", flush=True)
    dist.barrier()  # a rank that leaves early breaks the other's connection
    leave(0)


def leave(status: int) -> None:
    """Leave without cleaning up: gloo's threads abort some interpreters on their way out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
