"""Each known attack has a test, and the documented table is the one that the tests make."""

from tests.security.attack_table import ATTACKS, ROOT, attack_table, proofs


def test_each_attack_is_proved_and_each_proof_is_of_a_known_attack() -> None:
    assert sorted(ATTACKS) == list(range(1, 33))
    assert sorted(proofs()) == list(range(1, 33))


def test_the_documented_table_is_that_of_the_tests() -> None:
    remedy = "print it with `python -m tests.security.attack_table` and put it into docs/security.md"
    assert "\n".join(attack_table()) in (ROOT / "docs" / "security.md").read_text(), remedy
