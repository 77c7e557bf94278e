"""What the tests of methods share."""

from vidsieve import Prompt, Reducer, VideoTokens


def kept(method: Reducer, tokens: VideoTokens, prompt: Prompt | None = None) -> list[int]:
    return method.reduce(tokens, prompt).kept.tolist()
