"""What of a segment need not be computed again when one of its modules changes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from psvit.neurons import reset_state


@dataclass
class _Call:
    """A module's call in the recorded run."""

    # the order in which modules begin and end
    begun: int
    ended: int = -1
    output: Any = None
    # where its one input lies; None for what nothing keeps alive, whose place may be taken again
    reads: tuple | None = None


class Replay:
    """Records what each module of a segment gives, to give it again where it cannot have changed.

    That is so for every module that ended before the first changed one began, and for a later one
    that reads a recorded tensor itself (key and value, behind a changed query). It needs to know
    nothing of the segment, but that nobody writes to what its modules gave; see
    ``written_in_place``.

    Args:
        segment: a part of a network, in evaluation mode.
    """

    def __init__(self, segment: nn.Module):
        self._segment = segment
        self._modules = {path: module for path, module in segment.named_modules() if path}
        # a layer may lie in several containers, of which its path names one
        self._within = {path: set(module.modules()) for path, module in self._modules.items()}
        self._calls: dict[str, _Call] = {}
        self._events = 0
        # called more than once: the membrane state that one call leaves to another must be there
        self._repeated: set[nn.Module] = set()
        self._earlier: list[Any] = []

    def record(self, run: Callable[[], Tensor], x: Tensor) -> Tensor:
        """Run the segment on ``x`` by ``run``, and keep what its modules give."""
        alive = {_storage(x)}
        with ExitStack() as stack:
            for path, module in self._modules.items():
                stack.callback(module.register_forward_pre_hook(partial(self._begin, path)).remove)
                stack.callback(module.register_forward_hook(partial(self._end, path, alive)).remove)
            return run()

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors that modules gave."""
        found = [*self._earlier, *(call.output for call in self._calls.values())]
        return [output for output in found if isinstance(output, Tensor)]

    def _begin(self, path: str, module: nn.Module, _args: tuple) -> None:
        self._events += 1
        begun = self._events
        if path in self._calls:
            self._repeated.add(module)
            # what others read of it stays where it is, and what reads its first output changes
            self._earlier.append(self._calls[path].output)
            begun = self._calls[path].begun
        self._calls[path] = _Call(begun)

    def _end(self, path: str, alive: set, _module: nn.Module, args: tuple, output: Any) -> None:
        self._events += 1
        call = self._calls[path]
        call.ended, call.output = self._events, output
        if len(args) == 1 and isinstance(args[0], Tensor) and _storage(args[0]) in alive:
            call.reads = _place(args[0])
        if isinstance(output, Tensor):
            alive.add(_storage(output))

    @contextmanager
    def changed(self, paths: Iterable[str]) -> Iterator[None]:
        """Let the segment compute only what changes with the modules at ``paths`` (within it)."""
        roots = [self._segment.get_submodule(path) for path in paths]
        touched = {module for root in roots for module in root.modules()}
        begun = {self._modules[path]: call.begun for path, call in self._calls.items()}
        first = min((begun.get(root, 0) for root in roots), default=0)
        with ExitStack() as stack:
            for path, call in self._calls.items():
                if self._within[path] & self._repeated:
                    continue
                module = self._modules[path]
                if call.ended < first:
                    stack.enter_context(_forward(module, partial(_give, call.output)))
                elif call.reads and not self._within[path] & touched:
                    again = partial(_give_if_same, call, module.forward)
                    stack.enter_context(_forward(module, again))
            yield


def written_in_place(model: nn.Module, images: Tensor) -> frozenset[str]:
    """The segments in which somebody writes to what enters them, or to what a module gave.

    As ``y += x`` does. What is computed once could not serve twice there.

    Args:
        model: the network, in evaluation mode.
        images: a batch.
    """
    found = set()
    # tensors of inference mode do not count how often they were written to
    with torch.inference_mode(False), torch.no_grad():
        x = model.encode(images.clone())
        reset_state(model)
        for path, segment in model.segments().items():
            given = [(x, x._version)]

            def note(_module: nn.Module, _args: tuple, y: Any, given: list = given) -> None:
                if isinstance(y, Tensor):
                    given.append((y, y._version))

            with ExitStack() as stack:
                for module in segment.modules():
                    stack.callback(module.register_forward_hook(note).remove)
                x = model.step(segment, x)
            if any(y._version != version for y, version in given):
                found.add(path)
        reset_state(model)
    return frozenset(found)


def _give(output: Any, *_args: Any, **_options: Any) -> Any:
    return output


def _give_if_same(call: _Call, forward: Callable, *args: Any, **options: Any) -> Any:
    if len(args) == 1 and not options and _place(args[0]) == call.reads:
        return call.output
    return forward(*args, **options)


@contextmanager
def _forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Replace a module's ``forward`` for a while."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _place(x: Tensor) -> tuple:
    return x.data_ptr(), x.shape, x.stride(), x.dtype
