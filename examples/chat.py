"""Talk with the agents, in this process or on a service: the same program as `latentmas chat`.

python examples/chat.py
python examples/chat.py --prompt "What is AI?" --output-json
python examples/chat.py --endpoint http://127.0.0.1:8000 --pipeline parallel
"""

import typer

from latentmas_core.cli.chat_command import chat

if __name__ == "__main__":
    typer.run(chat)
