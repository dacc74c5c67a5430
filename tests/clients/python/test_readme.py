"""README.md's tour, as it stands there."""
import pathlib
import re
import uuid

from conftest import PULSAR_URL

README = pathlib.Path(__file__).parents[3] / "README.md"


def test_tour(capfd):
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    orders = f"orders-{uuid.uuid4().hex[:8]}"
    there = {'"pulsar://127.0.0.1:6650"': repr(PULSAR_URL), '"orders"': repr(orders)}
    for old, new in there.items():
        assert old in program
        program = program.replace(old, new)
    exec(compile(program, README, "exec"), {})
    printed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("customer-")]
    assert printed == [f"customer-{i % 3} order {i}" for i in range(10)]
