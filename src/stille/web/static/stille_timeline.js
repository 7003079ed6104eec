// Events as bars, a row for each camera; bars of a row that overlap lie below each other.
export default {
  props: { since: Number, until: Number, rows: Array, colours: Object, timezone: String },
  template: `
    <div class="st-timeline">
      <div class="st-row st-axis"><b></b><div><span v-for="t in ticks" :style="{ left: at(t) }">{{ label(t) }}</span></div></div>
      <div class="st-row" v-for="r in laid" :key="r.camera" :data-camera="r.camera">
        <b>{{ r.camera }}<small>{{ r.bars.length }}</small></b>
        <div :style="{ height: 8 + 18 * r.lanes + 'px' }">
          <s v-for="t in ticks" :style="{ left: at(t) }"></s>
          <i v-for="b in r.bars" :key="b.id" :class="{ open: b.ended === null }" :title="b.title" :data-id="b.id"
             :style="{ left: at(Math.max(b.began, since)), width: width(b), top: 4 + 18 * b.lane + 'px', background: colours[b.rule] }"
             @click="$emit('pick', b.id)"></i>
          <u v-if="now < until" :style="{ left: at(now) }"></u>
        </div>
      </div>
    </div>`,
  emits: ["pick"],
  computed: {
    now() { return Date.now() / 1000; },
    span() { return this.until - this.since; },
    ticks() {
      const steps = [60, 300, 600, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
      const step = steps.find((s) => this.span / s <= 12) || 86400 * Math.ceil(this.span / 86400 / 12);
      const there = new Date(this.since * 1000).toLocaleString("en-US", { timeZone: this.timezone });
      const utc = new Date(this.since * 1000).toLocaleString("en-US", { timeZone: "UTC" });
      const off = (new Date(utc) - new Date(there)) / 1000, found = [];
      for (let t = Math.ceil((this.since - off) / step) * step + off; t < this.until; t += step) found.push(t);
      return found;
    },
    laid() {
      return this.rows.map((row) => {
        const ends = [];
        const bars = row.bars.map((bar) => {
          const end = Math.max(bar.ended ?? this.now, bar.began + this.span / 150);
          let lane = ends.findIndex((e) => e <= bar.began);
          if (lane < 0) lane = ends.length < 6 ? ends.length : 5;
          ends[lane] = end;
          return { ...bar, lane };
        });
        return { camera: row.camera, bars, lanes: Math.max(1, ends.length) };
      });
    },
  },
  methods: {
    at(t) { return 100 * (t - this.since) / this.span + "%"; },
    width(b) {
      const end = Math.min(b.ended ?? Math.min(this.now, this.until), this.until);
      return `max(6px, ${100 * (end - Math.max(b.began, this.since)) / this.span}%)`;
    },
    label(t) {
      const d = new Date(t * 1000);
      const zone = { timeZone: this.timezone };
      if (this.span > 172800) return d.toLocaleDateString("en-GB", { weekday: "short", day: "numeric", ...zone });
      return d.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", ...zone });
    },
  },
};
