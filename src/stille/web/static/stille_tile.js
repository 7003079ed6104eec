// A camera's newest picture with what is seen in it. Asks only while it is in sight, and never for two pictures at once.
const COLOURS = { person: "#2dd4bf", forklift: "#f5b642", pallet: "#8b9dff", cart: "#d08bff" };

export default {
  props: { camera: String, fps: { type: Number, default: 4 }, shapes: Array, note: String, away: Boolean, layers: Object, timezone: String },
  template: `
    <div class="st-tile" :class="{ 'st-alarm': alarms.length, 'st-away': away }" :data-camera="camera">
      <div class="st-view" :style="{ aspectRatio: size[0] + ' / ' + size[1] }">
        <img ref="image" :alt="camera" v-show="number" draggable="false">
        <svg v-if="on('zones')" viewBox="0 0 1 1" preserveAspectRatio="none">
          <polygon v-for="s in zones" :key="s.name" :points="path(s)" :class="{ 'st-hit': hit[s.name] }" class="st-zone"/>
          <line v-for="s in lines" :key="s.name" class="st-line" :x1="s.points[0][0]" :y1="s.points[0][1]"
                :x2="s.points[1][0]" :y2="s.points[1][1]"/>
        </svg>
        <template v-if="on('zones')">
          <span v-for="s in shapes" :key="s.name" class="st-place" :class="{ 'st-hit': hit[s.name] }"
                :style="anchor(s)">{{ s.name }}</span>
        </template>
        <template v-if="on('boxes')">
          <div v-for="(o, i) in objects" :key="i" class="st-box" :class="[o.kind, { 'st-bad': o.alarm.length }]"
               :style="place(o)">
            <span v-if="on('labels')" :class="{ 'st-low': o.box[1] < 0.07 }">
              <em>{{ o.kind }}</em><b v-if="o.identity !== null">{{ o.identity }}</b><i v-for="w in o.says">{{ w }}</i>
            </span>
          </div>
        </template>
        <div class="st-name"><em :class="{ on: !away && number }"></em>{{ camera }}<small>{{ note }}</small></div>
        <div class="st-clock" v-if="number">{{ clock }}</div>
        <div class="st-none" v-if="!number">waiting for a picture</div>
        <div class="st-alarms">
          <span v-for="a in grouped" :key="a.rule" @click="$emit('pick', a.id)">{{ a.rule }}<b v-if="a.n > 1">{{ a.n }}</b></span>
        </div>
      </div>
    </div>`,
  emits: ["pick"],
  data: () => ({ number: 0, size: [16, 9], objects: [], alarms: [], time: 0, visible: true }),
  computed: {
    zones() { return (this.shapes || []).filter((s) => s.kind === "zone"); },
    lines() { return (this.shapes || []).filter((s) => s.kind === "line"); },
    hit() { return Object.fromEntries(this.alarms.filter((a) => a.zone).map((a) => [a.zone, true])); },
    grouped() { // one word for each rule; a click leads to the newest
      const found = {};
      for (const a of this.alarms) found[a.rule] = { ...a, n: (found[a.rule]?.n || 0) + 1 };
      return Object.values(found);
    },
    clock() { return new Date(this.time * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium", timeZone: this.timezone }); },
  },
  mounted() {
    this.observer = new IntersectionObserver((seen) => { this.visible = seen[seen.length - 1].isIntersecting; });
    this.observer.observe(this.$el);
    this.run();
  },
  beforeUnmount() {
    this.gone = true;
    this.observer.disconnect();
    if (this.url) URL.revokeObjectURL(this.url);
  },
  methods: {
    on(layer) { return !this.layers || this.layers[layer] !== false; },
    path(s) { return s.points.map((p) => p.join(",")).join(" "); },
    anchor(s) {
      const top = s.points.reduce((a, b) => (b[1] < a[1] ? b : a));
      return { left: 100 * Math.min(top[0], 0.85) + "%", top: 100 * top[1] + "%" };
    },
    place(o) {
      const [x0, y0, x1, y1] = o.box.map((v) => 100 * v);
      const colour = o.alarm.length ? "#ff5d5d" : COLOURS[o.kind];
      return { left: x0 + "%", top: y0 + "%", width: x1 - x0 + "%", height: y1 - y0 + "%", "--c": colour };
    },
    async run() {
      while (!this.gone) {
        const begun = performance.now();
        if (this.visible && !document.hidden) await this.next().catch(() => {});
        const rest = 1000 / this.fps - (performance.now() - begun);
        await new Promise((done) => setTimeout(done, Math.max(20, rest)));
      }
    },
    async next() {
      const answer = await fetch(`/live/${encodeURIComponent(this.camera)}?after=${this.number}`);
      if (answer.status === 401) { location.reload(); return; }
      if (answer.status !== 200) return;
      const data = await answer.arrayBuffer();
      const length = new DataView(data).getUint32(0, true);
      const overlay = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
      const url = URL.createObjectURL(new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
      if (this.gone) { URL.revokeObjectURL(url); return; }
      this.$refs.image.src = url;
      await this.$refs.image.decode().catch(() => {});
      if (this.url) URL.revokeObjectURL(this.url);
      this.url = url;
      Object.assign(this, overlay);
    },
  },
};
