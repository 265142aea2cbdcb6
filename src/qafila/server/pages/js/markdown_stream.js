// Shows Markdown while it grows. Work is done once a frame at most, and only on the blocks that can still change.

import { rewriteCode } from "./code.js";
import { blockNodes, blocksOf } from "./markdown.js";

// The last block changes with every token, and the one before it can still merge with it ("2" after a list becomes "2.").
const UNSETTLED = 2;
// Rendering takes a quarter of the time at most: after a frame that took long, the next ones are skipped.
const SHARE = 3;

// markdown-it reads every line ending as LF; offsets into the text must mean the same.
const normal = (text) => text.replace(/\r\n?/g, "\n");

export class MarkdownStream {
  #text = "";
  #settled = 0; // blocks that are final, and
  #offset = 0; // where in the text the first other one starts
  #blocks = []; // {html, fence, nodes}
  #frame = 0;
  #resumeAt = 0;
  #onDraw;

  /** @param root an empty element. @param onDraw called after the DOM has changed. */
  constructor(root, onDraw = () => {}) {
    this.root = root;
    this.#onDraw = onDraw;
  }

  /** The whole text so far. */
  write(text) {
    this.#text = normal(text);
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** The whole text, for good: every block is checked once more, now that link targets at the end are known. */
  finish(text) {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#replace(0, blocksOf(normal(text)));
    this.#onDraw();
  }

  #draw() {
    this.#frame = 0;
    const start = performance.now();
    if (start < this.#resumeAt) {
      this.write(this.#text);
      return;
    }
    const blocks = blocksOf(this.#text.slice(this.#offset));
    this.#replace(this.#settled, blocks);
    const final = Math.max(0, blocks.length - UNSETTLED);
    if (final > 0) {
      this.#settled += final;
      this.#offset += blocks[final].start;
    }
    this.#onDraw();
    const end = performance.now();
    this.#resumeAt = end + SHARE * (end - start);
  }

  /** Make the blocks from `first` on be these, touching only those that differ. */
  #replace(first, blocks) {
    blocks.forEach((block, i) => {
      const old = this.#blocks[first + i];
      if (old?.html === block.html) return;
      if (old?.fence && block.fence && old.fence.info === block.fence.info) {
        rewriteCode(old.nodes[0], block.fence.content);
        this.#blocks[first + i] = { ...block, nodes: old.nodes };
        return;
      }
      const nodes = blockNodes(block.html);
      if (old) {
        old.nodes[0].before(...nodes);
        for (const node of old.nodes) node.remove();
      } else {
        this.root.append(...nodes);
      }
      this.#blocks[first + i] = { ...block, nodes };
    });
    for (const { nodes } of this.#blocks.splice(first + blocks.length)) for (const node of nodes) node.remove();
  }
}
