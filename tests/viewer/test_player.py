from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.errors import UnmaskError
from unmask.types import TraceRecord
from unmask.viewer import load_records, render_player
from unmask.viewer.player import pair_records, player_data


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class TestLoadRecords:
    def test_reads_back_what_was_written(self, tmp_path, make_record):
        records = [make_record("q1"), make_record("q2", reward=None)]
        path = write_lines(tmp_path / "t.jsonl", json.dumps(records[0].to_dict()), "", json.dumps(records[1].to_dict()))
        assert load_records(path) == records

    def test_bare_trace_is_named_after_its_line(self, tmp_path, make_record):
        trace = make_record().trace
        path = write_lines(tmp_path / "t.jsonl", "", json.dumps(trace.to_dict()))
        assert load_records(path) == [TraceRecord("line 2", trace)]

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path, make_record):
        path = tmp_path / "t.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(make_record().to_dict()).encode() + b"\r\n\r\n")
        assert load_records(path) == [make_record()]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda r: r.pop("trace"), "unknown field"),
            (lambda r: r.update(colour=1), "unknown field 'colour'"),
            (lambda r: r["trace"].pop("step_map"), "step_map"),
            (lambda r: r["trace"]["step_map"].pop(), "step_map has 24 entries for 25 canvas tokens"),
            (lambda r: r.update(canvas_pieces=["a"]), "canvas_pieces has 1 entries for 25 tokens"),
            (lambda r: r.update(id=3), "id: Input should be a valid string, found 3"),
            (lambda r: r.update(prompt_text=None), "prompt_text: Input should be a valid string, found None"),
            (lambda r: r.update(answer=8), "answer: Input should be a valid string, found 8"),
            (lambda r: r.update(reward="1"), "reward: Input should be a valid number, found '1'"),
            (lambda r: r["trace"].update(num_forwards="9"), "num_forwards: Input should be a valid integer, found '9'"),
            (lambda r: r.update(reward=float("nan")), "reward: Input should be a finite number, found nan"),
            (lambda r: r["trace"]["step_map"].__setitem__(0, -2), "step_map.0: Input should be greater than or equal to -1"),
        ],
    )
    def test_wrong_fields_name_file_and_line(self, tmp_path, make_record, change, message):
        data = make_record().to_dict()
        good = json.dumps(data)
        change(data)
        if "trace" not in data:
            data, message = {"id": "q1"}, "field 'trace' is missing"
        path = write_lines(tmp_path / "t.jsonl", good, json.dumps(data))
        with pytest.raises(UnmaskError) as error:
            load_records(path)
        text = str(error.value)
        assert text.startswith(f"{path}:2: ")
        assert message in text
        assert "\n" not in text

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "{path}: holds no traces; expected one JSON object per line"),
            (b"\n \n", "{path}: holds no traces; expected one JSON object per line"),
            (b"\n{nope}\n", "{path}:2: not JSON (Expecting property name enclosed in double quotes, column 2)"),
            (b"[1]\n", "{path}:1: expected a JSON object, found list"),
            (b'{"id": "\xff"}\n', "{path}:1: not UTF-8 text (byte 9 of the line)"),
            (b"[" * 100_000, "{path}:1: not JSON that can be read (a number too long or nesting too deep)"),
            (b"9" * 5_000, "{path}:1: not JSON that can be read (a number too long or nesting too deep)"),
        ],
    )
    def test_unreadable_content(self, tmp_path, content, message):
        path = tmp_path / "t.jsonl"
        path.write_bytes(content)
        with pytest.raises(UnmaskError) as error:
            load_records(path)
        assert str(error.value) == message.format(path=path)

    def test_missing_file_and_directory(self, tmp_path):
        with pytest.raises(UnmaskError) as error:
            load_records(tmp_path / "none.jsonl")
        assert str(error.value) == f"{tmp_path / 'none.jsonl'}: no such file"
        with pytest.raises(UnmaskError) as error:
            load_records(tmp_path)
        assert str(error.value) == f"{tmp_path}: is a directory; expected a file with one JSON object per line"


class TestData:
    def test_what_the_page_shows_under_the_names_of_the_file(self, make_record):
        record = make_record(reason="long", parts={"form": 1.0})
        data = player_data([record], None, ("a", "b"), "n")
        assert (data["name"], data["compare"], data["labels"], len(data["records"])) == ("n", None, [], 1)
        whole = record.to_dict()
        shown = data["records"][0]
        assert shown.keys() < whole.keys()
        assert shown["trace"].keys() < whole["trace"].keys()
        assert all(shown[name] == whole[name] for name in shown if name != "trace")
        exact = {name: values for name, values in shown["trace"].items() if name not in ("logprobs", "confidences")}
        assert exact == {name: whole["trace"][name] for name in exact}
        assert shown["trace"]["logprobs"] == pytest.approx(whole["trace"]["logprobs"], rel=1e-4)

    def test_numbers_that_json_does_not_know_become_null(self, make_record):
        record = make_record()
        record.trace.logprobs[:3] = [float("-inf"), float("nan"), 10**400]
        assert player_data([record], None, ("a", "b"), "n")["records"][0]["trace"]["logprobs"][:3] == [None] * 3
        render_player([record], "t")

    def test_pairs_by_id_then_by_occurrence(self, make_record):
        one = [make_record("a"), make_record("b"), make_record("a", reward=0.5), make_record("c")]
        two = [make_record("a", reward=0.1), make_record("x"), make_record("a", reward=0.2)]
        assert [(x.id, y.id, y.reward) for x, y in pair_records(one, two)] == [("a", "a", 0.1), ("a", "a", 0.2)]

    def test_nothing_in_common_and_nothing_at_all(self, make_record):
        with pytest.raises(UnmaskError, match=r"no id in common \(first ids: 'a' and 'b'\)"):
            render_player([make_record("a")], "t", [make_record("b")])
        for records, compare in (([], None), ([make_record()], []), ([], [make_record()])):
            with pytest.raises(UnmaskError, match="there are no trace records"):
                render_player(records, "t", compare)
