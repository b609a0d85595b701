"""The process behind engine/chat_template.py: one JSON request on stdin, one JSON reply on stdout.

A chat template is a program of whoever made the model. transformers runs it in jinja2's immutable sandbox, out of which it
cannot reach; here it also has limits on time, memory and what it writes, so that it can neither hang nor fill a machine.
"""

import json
import resource
import sys

MAX_CHARACTERS = 1_000_000
"""Of a rendered chat, beyond its messages."""
_MAX_BYTES = 4 * 2**30  # of memory


def main() -> None:
    """Render the chats of the request: `texts` in their order, or the `error` of the first that failed, at `index`."""
    request = json.load(sys.stdin.buffer)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    from transformers.utils.chat_template_utils import render_jinja_template

    texts: list[str] = []
    for index, talk in enumerate(request["talks"]):
        limit = MAX_CHARACTERS + sum(len(message["content"]) for message in talk)
        try:
            (text,), _ = render_jinja_template(
                [talk], chat_template=request["template"], add_generation_prompt=True, **request["variables"]
            )
            if len(text) > limit:
                raise ValueError(f"it writes {len(text)} characters, the limit is {limit}")
        except BaseException as error:  # whatever a hostile template provokes, MemoryError and RecursionError too
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            json.dump({"error": reason, "index": index}, sys.stdout)
            return
        texts.append(text)
    json.dump({"texts": texts}, sys.stdout)


if __name__ == "__main__":
    main()
