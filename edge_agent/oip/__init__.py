"""The Open Inference Protocol v2 over HTTP: the agent as an inference server.

    HTTP -> surface.py (addresses, status codes) -> requests.py (checked at the door, made canonical)
                |                                        |
                |                                   service.py -> journal -> window -> engine (items.py)
                |                                        |
             responses.py  <-  answers.py (what a task's end says)  <-  journal

`messages.py` and `tensors.py` know the form of the protocol; the runtime for models on other servers
(`edge_agent.remote`) uses them from the other side.

The protocol: github.com/kserve/open-inference-protocol, inference_rest.md. Binary tensors and classification
are extensions of NVIDIA Triton: github.com/triton-inference-server/server, docs/protocol.
"""
