"""The engine: serves one model on one machine.

From the outside in: `llm.LLM` (synchronous) and `async_llm.AsyncLLM` (streaming) own a `core.EngineCore`, which
turns requests into sequences, lets the `scheduler` build steps over the `block_manager`'s pages, launches them on the
`model_runner` (sampling state, token feedback) and reads the tokens back. The hardware sits behind `executor.Executor`.
"""
