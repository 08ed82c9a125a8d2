import type en from "../en/compare";
import type { Same } from "../words";

export default {
  title: "তুলনা",
  lead: "পদ্ধতিগুলো পাশাপাশি: মান, প্যারামিটার, মেমোরি, বিস্মৃতি।",
  empty: "এখনো কোনো তুলনা নেই",
  emptyHint: "halka compare দিয়ে মাপুন; প্রতিবেদনগুলো এখানে দেখা যাবে।",
} satisfies Same<typeof en>;
