"""Parts of a training step as CUDA graphs: recorded once, then started with one call, where Python would have to start
each of some hundred operations while the GPU waits.

A recorded part always works on the same memory, with the same numbers in it: its inputs are copied to where they lay,
and all that is no tensor, such as learning rates and which parameters train, belongs to the key that it is recorded
under. On other devices the same code runs the part itself on the copied inputs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)
WARM_UP = 2  # calls with a key before it is recorded: states are made in them, code compiled, algorithms chosen
Part = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class StepGraphs:
    """The recorded parts of a step, by name; each takes a dictionary of tensors, returns one, and may read and set the
    gradients of `parameters`.

    With a new key a part runs WARM_UP times as it is; then it is recorded, and replayed from there on. Of each part one
    recording is kept, that of the last key. Where recording fails, a line says so and the parts run as they are from
    then on.
    """

    def __init__(self, parameters: Sequence[Tensor] = (), enabled: bool = False):
        self.parameters, self.enabled = parameters, enabled
        self.calls: dict[str, tuple[Hashable, int]] = {}  # of a part: its key, how often it was called with it
        self.recordings: dict[str, Recording] = {}

    @functools.cached_property
    def stream(self) -> torch.cuda.Stream | None:
        """On a GPU: where parts are recorded, and run before that, as CUDA asks for."""
        device = self.parameters[0].device
        return torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, name: str, part: Part, inputs: dict[str, Tensor], key: Hashable | None) -> dict[str, Tensor]:
        """What `part` makes of `inputs`; a part that was recorded overwrites what it returned before. With key
        None it is never recorded."""
        if key is None or not self.enabled:
            return part(inputs)
        key = key, tuple((column, tensor.shape, tensor.dtype) for column, tensor in inputs.items())
        seen, calls = self.calls.get(name, (None, 0))
        self.calls[name] = key, calls + 1 if seen == key else 1
        if self.calls[name][1] <= WARM_UP:
            self.recordings.pop(name, None)
            return self._beside(part, inputs)
        if name not in self.recordings:
            try:
                self.recordings[name] = Recording(part, inputs, self.parameters, self.stream)
            except RuntimeError as error:  # of CUDA: an operation that cannot be recorded, no memory for a second copy
                log.warning("the step is not recorded as a CUDA graph (%s)", str(error).splitlines()[0])
                self.enabled = False
                self.recordings.clear()
                return part(inputs)
        return self.recordings[name].replay(inputs)

    def _beside(self, part: Part, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run a part in the stream that it will be recorded in, where there is one."""
        if self.stream is None:
            return part(inputs)
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = part(inputs)
        current.wait_stream(self.stream)
        return outputs


class Recording:
    """A part on the memory that it was recorded with. RuntimeError where it cannot be recorded: then nothing has
    happened, and the gradients are as they were."""

    def __init__(self, part: Part, inputs: dict[str, Tensor], parameters: Sequence[Tensor],
                 stream: torch.cuda.Stream | None):
        self.part, self.parameters = part, parameters
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self.graph = None
        if stream is None:
            return
        before, self.graph = [parameter.grad for parameter in parameters], torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that pins the loader's memory may go on meanwhile
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.outputs = part(self.inputs)
        except RuntimeError:
            set_gradients(parameters, before)
            raise
        self.gradients = [parameter.grad for parameter in parameters]

    def replay(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the part makes of inputs of the recorded shapes."""
        for name, place in self.inputs.items():
            place.copy_(inputs[name])
        if self.graph is None:
            return self.part(self.inputs)
        self.graph.replay()
        set_gradients(self.parameters, self.gradients)
        return self.outputs


def set_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Give each parameter its gradient."""
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient
