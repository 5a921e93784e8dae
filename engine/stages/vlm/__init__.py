"""Questions about pictures to a vision-language model behind an OpenAI-compatible endpoint.

`client`: requests, connections, retries. `chat`: what is asked, and what an answer says. `judgment`: the stage that
turns answers into scores.
"""
