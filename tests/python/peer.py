"""A process with an agent and filled memory, for tests across processes. Lines of JSON: a question
in, an answer out. It ends with its standard input."""

from __future__ import annotations

import json
import sys

import numpy as np

import kvferry


def content(seed: int, size: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8).copy()


def answer(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    setup = json.loads(sys.argv[1])
    memory = content(setup["seed"], setup["size"])
    with kvferry.Agent(setup["name"], setup["transport"], **setup["options"]) as agent:
        agent.register([kvferry.range_of(memory)])
        address = kvferry.range_of(memory)[0]
        answer(name=setup["name"], address=address, metadata=agent.metadata().hex())
        for line in sys.stdin:
            question = json.loads(line)
            try:
                answer(**respond(agent, memory, **question))
            except kvferry.Error as e:
                answer(error=str(e))


def respond(agent: kvferry.Agent, memory: np.ndarray, do: str, **given) -> dict:
    if do == "holds":  # is the content of a seed, from its offset, at a place of the memory?
        expected = content(given["seed"], given["of"])[given["from"] :][: given["len"]]
        return {"yes": bool((memory[given["at"] :][: given["len"]] == expected).all())}
    if do == "wait":
        got = agent.wait_notification(prefix=bytes.fromhex(given["prefix"]), timeout=30)
        return {"sender": got.sender, "payload": got.payload.hex()}
    if do == "meet":
        return {"name": agent.add_remote(bytes.fromhex(given["metadata"]))}
    if do == "notify":
        agent.notify(given["to"], bytes.fromhex(given["payload"]))
        return {}
    if do == "deregister":
        agent.deregister([kvferry.range_of(memory)])
        return {}
    raise ValueError(do)


if __name__ == "__main__":
    main()
