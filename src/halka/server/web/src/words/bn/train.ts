import type en from "../en/train";
import type { Same } from "../words";

export default {
  title: "প্রশিক্ষণ",
  lead: "নিজের ফাইল দিয়ে একটি অ্যাডাপ্টার গড়ুন, আর তার উন্নতি দেখুন।",
  empty: "এখনো কিছু প্রশিক্ষিত হয়নি",
  emptyHint: "উদাহরণের একটি ফাইল এখানে দিন: JSONL, CSV, Parquet, বা রপ্তানি করা কথোপকথন।",
} satisfies Same<typeof en>;
