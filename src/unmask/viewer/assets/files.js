/* Files with traces, chosen or dropped onto the page: one is opened, a second one is shown beside it. */
"use strict";

class TraceFiles {
  /* first: { name, records } that are there from the start, or null. */
  constructor(player, first) {
    this.player = player;
    this.first = first;
    this.taking = Promise.resolve(); // until what was chosen or dropped last is shown, or refused
    this.tools = document.getElementById("files");
    this.part = (role) => this.tools.querySelector(`[data-role="${role}"]`);
    this.drop = document.getElementById("drop");
    this.title = document.querySelector('[data-role="title"]');
    this.showFirst();
    this.listen();
  }

  showFirst() {
    this.part("beside").hidden = !this.first;
    this.drop.querySelector('[data-drop="beside"]').hidden = !this.first;
    this.drop.querySelector('[data-role="drop-name"]').textContent = this.first ? this.first.name : "";
  }

  /* files: one, or two for a comparison. isBeside: beside the first file that is there already. */
  async take(files, isBeside) {
    this.showProblem("");
    try {
      if (files.length > (isBeside ? 1 : 2)) throw new Error(`${files.length} files at once: ${isBeside ? "one goes beside the first" : "two can be compared, not more"}`);
      const sets = [];
      for (const file of files) sets.push(await this.read(file));
      const [one, two] = isBeside ? [this.first, ...sets] : sets;
      const labels = two ? this.labels(one.name, two.name) : null;
      const { items, numLeftOut } = makeItems(one.records, two ? two.records : null, labels);
      this.first = one;
      this.showFirst();
      const name = two ? `${one.name} beside ${two.name}` : one.name;
      if (this.title) document.title = this.title.textContent = name;
      this.player.setGroup("file", name, items, numLeftOut);
      this.player.select(items[0]);
      this.player.playWhenSeen();
    } catch (error) {
      this.showProblem(error.message);
    }
  }

  async read(file) {
    let bytes;
    try {
      bytes = new Uint8Array(await file.arrayBuffer());
    } catch {
      throw new Error(`${file.name}: cannot be read (a folder, or a file that is gone)`);
    }
    return { name: file.name, records: readRecords(bytes, file.name) };
  }

  /* Names without the ending, where that tells them apart. */
  labels(one, two) {
    const names = [one, two].map((name) => name.replace(/\.(jsonl|json|ndjson)$/i, ""));
    return names[0] === names[1] ? [`${names[0]} (first)`, `${names[1]} (second)`] : names;
  }

  /* One line, until something else is opened. Nothing that was shown is lost. */
  showProblem(text) {
    document.getElementById("file-problem").textContent = text;
  }

  listen() {
    const chooser = this.part("chooser");
    const choose = (isBeside) => {
      chooser.multiple = !isBeside;
      this.isBeside = isBeside;
      chooser.click();
    };
    this.part("open").addEventListener("click", () => choose(false));
    this.part("beside").addEventListener("click", () => choose(true));
    chooser.addEventListener("change", () => {
      const files = Array.from(chooser.files);
      chooser.value = ""; // the same file can be chosen again, after it was mended
      if (files.length) this.taking = this.take(files, this.isBeside);
    });
    const hasFiles = (event) => event.dataTransfer && Array.from(event.dataTransfer.types).includes("Files");
    const hide = () => { this.drop.hidden = true; };
    document.addEventListener("dragenter", (event) => { if (hasFiles(event)) this.drop.hidden = false; });
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      const over = event.target.closest ? event.target.closest("[data-drop]") : null;
      for (const zone of this.drop.children) zone.classList.toggle("is-over", zone === over);
    });
    this.drop.addEventListener("dragleave", (event) => { if (!this.drop.contains(event.relatedTarget)) hide(); });
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      hide();
      const zone = event.target.closest ? event.target.closest("[data-drop]") : null;
      this.taking = this.take(Array.from(event.dataTransfer.files), Boolean(zone && zone.dataset.drop === "beside"));
    });
  }
}

const theFiles = (() => {
  const { name, records } = JSON.parse(document.getElementById("player-data").textContent);
  return new TraceFiles(thePlayer, records.length ? { name, records } : null);
})();
